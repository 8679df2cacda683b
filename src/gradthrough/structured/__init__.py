"""Random choices with a structure: subsets, orders, permutations, gates."""
