//! Real trees in temporary directories, and plans of imagined ones.
