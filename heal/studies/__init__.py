"""Studies that are built on the loop: nothing in the loop imports them."""
