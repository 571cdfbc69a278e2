"""Columns, config and seed -> model, steps, checkpoint and record, on a CPU or a GPU. Needs the extra `training`."""
