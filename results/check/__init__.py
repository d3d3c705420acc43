"""Has a run lost accuracy or speed since its baseline? What `coremat check` compares."""
