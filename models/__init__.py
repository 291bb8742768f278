"""Networks: blocks, the detector, and what loads, wraps and exports it."""

from models import custom as custom  # registers what users have put there
from utils.former_paths import keep_former_paths

keep_former_paths()
