"""Records of others: a run becomes a bundle, and the ledger takes what was verified."""
