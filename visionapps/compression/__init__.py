"""Steps that make a trained model smaller or cheaper: pruning, shared weights, ternary and binary weights."""
