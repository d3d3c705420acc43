"""What a method costs: counted from shapes, projected for a device, measured on this machine."""
