"""The methods of the papers, one sub-package a part: `from lossbook.methods.contrastive import info_nce`."""
