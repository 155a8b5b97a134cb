"""Where and how to steer: methods and bands of blocks held against each other on base, at equal KL."""
