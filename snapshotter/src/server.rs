//! Serving on the unix socket: taking it over, modes, and the drain at the end.
