# cgdpm-med in a container; see docs/integration.md
FROM python:3.11-slim AS build

WORKDIR /src
RUN python -m venv /opt/cgdpm_med
COPY constraints.txt ./
# the largest part by itself, so that a change of the code does not fetch it again
RUN /opt/cgdpm_med/bin/pip install --no-cache-dir --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY cgdpm_med ./cgdpm_med
COPY bundles ./bundles
COPY recipes ./recipes
RUN /opt/cgdpm_med/bin/pip install --no-cache-dir --constraint constraints.txt '.[dicom,cluster,archive]'

FROM python:3.11-slim

COPY --from=build /opt/cgdpm_med /opt/cgdpm_med
# matplotlib and MONAI want a place of their own, whoever the user is
ENV PATH=/opt/cgdpm_med/bin:$PATH HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib PYTHONDONTWRITEBYTECODE=1
WORKDIR /
USER 1000:1000
ENTRYPOINT ["cgdpm-med"]
