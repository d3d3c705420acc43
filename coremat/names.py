"""Names that several parts of coremat have in common, without anything to import."""

DENSE = "dense"  # the method that prunes nothing: all others are compared with it
DOWNSAMPLE = "downsample"  # what it answers wrong, and dense right, are the hard questions
