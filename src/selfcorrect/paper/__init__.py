"""The paper's whole comparison: rows as configurations, their runs, what they cost, and packing them up."""
