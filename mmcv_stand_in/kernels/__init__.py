"""One kernel a file, under mmcv's names and with its calling contract: results go into arguments where mmcv's do."""
