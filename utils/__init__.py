"""Everything that knows no network: files, boxes, data, loss, metrics, plots of results."""

from utils.former_paths import keep_former_paths

keep_former_paths()
