//! What a snapshot is: pure types, validated at construction.
