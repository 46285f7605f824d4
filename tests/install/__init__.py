"""Installing: the lists of versions, the build of torch, and what is said when something fails."""
