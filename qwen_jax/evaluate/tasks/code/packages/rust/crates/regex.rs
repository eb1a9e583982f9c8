//! The name of regex 1, which every problem declares. A program that uses it does not compile.
pub struct Regex;
