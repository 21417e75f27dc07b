"""A committed round folded again from what is stored: to the same weights, or to others by choice.

A coordinator's database and blobs are read and never written, so it may run meanwhile.
"""
