"""`coremat bench`: what methods take, measured where the device is and projected onto a profile where it is not."""
