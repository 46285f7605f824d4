"""Records: keys and signatures, the evidence bundle, the event chain, the ledger, and `verify`."""
