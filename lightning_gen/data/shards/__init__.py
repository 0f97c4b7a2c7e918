"""Images in shards: large tar files that are read from a disk, a shared file system or object storage."""
