"""Aperion beside other packages; each module says what has to be installed for it."""
