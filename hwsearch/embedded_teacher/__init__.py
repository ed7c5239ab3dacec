"""The teacher that comes with hwsearch: a checkpoint, its card (README.md), and the script that rebuilds both."""
