"""Devices: their data sheets, the roofline of the one that is here, and times projected for those that are not."""
