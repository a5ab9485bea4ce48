"""Reports as single HTML files that need no network: pictures and style are inside, and scripts are not used.

``templates`` holds the pages and their style, ``rendering`` fills them in; ``case`` and ``cohort`` gather what stands
on the page of a study and of a cohort, ``refined`` on that of a super-resolved image, ``pictures`` the slices with
contours and uncertainty, ``charts`` the curves.
"""
