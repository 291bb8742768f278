"""Everything that knows no network: files, boxes, data, loss, metrics, pictures of results."""
