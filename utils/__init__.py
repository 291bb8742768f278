"""Everything that knows no network: files, boxes, data, loss, metrics, plots of results."""

import sys

from utils.former_paths import FormerPaths

sys.meta_path.append(FormerPaths())
