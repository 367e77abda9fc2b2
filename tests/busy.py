"""What a busy machine is allowed: a promise of time is measured elsewhere, a test only finds what has got far slower."""

BUSY = 5
