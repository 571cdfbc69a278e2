"""Raw file -> checked rows -> ids and columns on disk -> seeded batches. Needs the extra `data`, to read raw files."""
