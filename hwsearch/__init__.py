"""hwsearch: the student transformer that loses least inside a latency budget on a device."""

__version__ = "0.1.0"
