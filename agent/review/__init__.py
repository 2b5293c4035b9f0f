"""Review: what the flywheel committed, listed, shown, approved or rejected by a person."""
