"""The services that end-to-end tests need: installed and started by the scripts beside this file."""
