"""A grid -> its runs that have no record, on all cores or GPUs; tuning; Table 2. Needs the extra `training`."""
