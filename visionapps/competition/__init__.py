"""From trained folds to a submission: out-of-fold predictions and what is tuned, averaged and packed from them."""
