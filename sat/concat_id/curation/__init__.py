"""From videos to training lists: clips with steady faces, reference crops, and the pairs of the three training stages."""
