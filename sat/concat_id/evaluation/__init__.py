"""Measure generated videos: whom they show, whether that is copied, what they say and how they move."""
