"""From verified records to pages: artifacts, history, secret scan, charts, pages, the MkDocs hook."""
