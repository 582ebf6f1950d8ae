"""The log: accepted batches as durable records, their recovery, placement and trimming, and the rows waiting for a flush."""
