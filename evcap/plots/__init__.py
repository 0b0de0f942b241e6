"""Images that show results: names with attention, contact sheets, evidence, regions."""
