"""The doors to disks and object stores: the only places that touch files of a log or objects of a warehouse."""
