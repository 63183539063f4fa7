# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Property tests say nothing about speed: machines are shared, and a slow one is no finding."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("dbops", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dbops")
