"""What an evaluation, and a bench, write and read: `record.json`."""
