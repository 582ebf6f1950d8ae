"""Files into snapshots: catalogs, manifests and the commit that lands once and only once."""
