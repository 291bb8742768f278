"""Networks: blocks, the detector, and what loads, wraps and exports it."""

import utils as utils  # lets the import system know the former paths
from models import custom as custom  # registers what users have put there
