"""Data work by a teacher: rows written, reviewed, aimed at failures, and cleaned away again."""
