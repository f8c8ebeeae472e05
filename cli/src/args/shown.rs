//! Examples of what shows.

pub const LS_EXAMPLES: &str = "\
Examples:
  capsulectl ls                 # all versions, the newest of each capsule first
  capsulectl ls tzdata -o json";

pub const INSPECT_EXAMPLES: &str = "\
Examples:
  capsulectl inspect tzdata             # the newest
  capsulectl inspect tzdata@stable      # what a tag stands for
  capsulectl inspect tzdata@2026.1 -o json";

pub const PS_EXAMPLES: &str = "\
Examples:
  capsulectl ps                 # of all containers
  capsulectl ps web --users     # and who still uses what is draining";

pub const UNTAG_EXAMPLES: &str = "\
Examples:
  capsulectl untag tzdata@stable";
