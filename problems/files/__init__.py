"""Reading, downloading and linking the files of data sources."""
