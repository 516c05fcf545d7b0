"""Files and folders that users name: paths, formats, JSON, locks, and writing that leaves nothing half done."""
