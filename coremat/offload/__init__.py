"""Running a model that does not fit on its device: FFN weights stream from the host while all else is resident."""
