"""What runs on a board: plain files that a kit carries as they are, and that hwsearch itself imports, so that there is
one source of them. They run from Python 3.8 on, with the standard library, numpy and the board's runtime alone.
"""
